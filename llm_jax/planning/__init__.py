"""Analysis of a compiled program from its HLO, without running it.

hlo           HLO text: operations, computations, tracing of values to their origin
loops         trip counts of loops
hlo_products  FLOPs of matrix products
collectives   collective operations and their bytes
program       all of this for one step on one device
shardings     shardings of parameters and bytes per device
"""
