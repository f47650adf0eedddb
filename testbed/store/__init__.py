"""Things that are made once and cached: kernels, images, initramfs archives, templates, snapshots."""
