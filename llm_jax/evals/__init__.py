"""What a trained model is measured by, beyond its training loss.

compression    bits per byte of gzip, xz and a byte 5-gram: the baselines of a held-out loss
"""
