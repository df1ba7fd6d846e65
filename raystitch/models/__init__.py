"""Pure torch: the diffusion U-Net and samplers, the stacked MLP heads, fitting, the saved bundle.

A new sampler is a line in ``SAMPLERS``. Golden numbers in tests/models pin the mathematics.
"""
