"""What the data set, the losses and the blocks build on; knows no task, script or engine.

data        h5array, h5file: one file of the layout; duplicates: pictures that are nearly alike
targets     kind: the base of all; pixels: a value per pixel; targets: all others, and the pets'
training    sampling: samples, side and seeds of a step; augment; optimiser; average: of weights;
            precision: bf16 or fp32; flops: the work of a step
losses      weightings: from losses; gradients: from gradients; methods: all of them by name
synthetic   drawing: shapes; drawn_pets, drawn_scenes: pets; drawn_rooms; demo_data: data sets
scripts     execution: a file under other constants; comments: its help texts; commandline
output      files: atomic writes, checkpoints, folders; paint, fonts: on images; figures: matplotlib
programs    errors, streams, signals, provenance
"""
