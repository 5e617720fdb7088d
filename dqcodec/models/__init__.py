"""Networks: the proxy classifier (`proxy`), its attention (`gradcam`), the masked autoencoder (`mae`). All need torch."""
