"""Tasks on Ray read, check, clean or quarantine, sessionise and write the log."""
