"""biigma: BIIGMA-Net for dermoscopy, from training to an ONNX answer."""

__version__ = "0.1.0"
