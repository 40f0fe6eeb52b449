"""What the compiler says about a program before any hardware runs it.

hlo           compiled programs as text: operations, computations, values followed to where they come from
loops         how often the body of a loop runs
products      FLOPs of matrix products
collectives   what devices exchange
program       all of it for one step on one device
"""
