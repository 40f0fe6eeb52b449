"""What runs have to say, read from their run directories and from nothing else.

runs     a run directory as arrays
plots    figures of one or several runs
report   report.md of a run, and the comparison of several
"""
