"""Pure torch: the diffusion U-Net and samplers, the stacked MLP heads, fitting, the saved bundle."""
