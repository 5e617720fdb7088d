"""Networks in torch: the proxy classifier (`proxy`), its attention (`gradcam`), the masked autoencoder (`mae`)."""
