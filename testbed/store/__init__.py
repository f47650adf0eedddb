"""What is made once and kept: kernels, images, initramfs archives, templates. Each store turns a recipe into a folder."""
