"""Ray Data reads, checks, cleans or quarantines, sessionises and writes the log."""
