"""BIIGMA-Net, one file per section of the paper.

Dimension letters, used as suffixes of tensor names throughout:

    B  images in the batch          K  heads
    C  channels of the trunk        D  channels of one head
    H  W  rows and columns          N  positions, H * W
    Y  classes
"""
