"""One module per experiment of the paper, each with its class `Experiment`; `paper.EXPERIMENTS` finds them."""
