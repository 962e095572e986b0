"""What the machine is: ranks and their wrappers, clocks, random numbers, files, PyTorch's private parts."""
