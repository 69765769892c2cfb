"""The stages of the pipeline, one file each: load, check, work, save, evaluate, verdict."""
