"""Training of many members as one program: state, step, loop, checkpoints, devices. It knows the losses and no metric."""
