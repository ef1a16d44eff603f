"""What stands below the data set, the losses and the blocks; knows no task, script or engine."""
