"""Parts of `benchmarks.serving`: what loads, what answers, and one file a question."""
