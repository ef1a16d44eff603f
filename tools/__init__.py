"""Commands before training and after it. A package, so that no other `tools` is found first."""
