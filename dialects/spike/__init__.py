"""The spike dialect: spiking networks over whole tensors."""
