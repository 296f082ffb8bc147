"""One module per data set, named as it is; each offers `source(spec, log)`."""
