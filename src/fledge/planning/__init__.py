"""What a recipe will cost, before it runs: pure arithmetic on its YAML and a layout. Imports nothing heavy.

    shape.py        model_config -> a shape, and its parameters to the digit
    job.py          the training recipes of a folder -> jobs: shape, rows, steps
    compute.py      FLOPs, hours, cost, disk
    activations.py  bytes that a forward pass keeps for the backward pass
    memory.py       bytes per GPU by part, on each engine
    fit.py          what fits which card, and what to change where it does not
    plan.py         all of it as one mapping, for --json
    terminal.py     and as lines to read

Every figure is planned. None was measured on a GPU; tests compare the parts with what torch and DeepSpeed count.
"""
