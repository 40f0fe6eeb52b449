"""Analysis of runs. It reads only run directories.

runs     a run directory as arrays
plots    figures of one or several runs
report   report.md of a run, and the comparison of several runs
"""
