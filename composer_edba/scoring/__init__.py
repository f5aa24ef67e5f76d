"""Where a pool's last-layer gradients come from: a forward pass now, or what training remembered."""
