"""One file a stage of the pipeline: the joints between the rooms."""
