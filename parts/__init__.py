"""What the data set, the losses and the blocks build on; knows no task, script or engine."""
