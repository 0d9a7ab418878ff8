"""Fine-tune a pretrained model on your labelled data, from one laptop CPU to many GPUs, from one config."""

__version__ = "0.1.0"
