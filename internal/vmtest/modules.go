package vmtest

import "banger/internal/initramfs"

// Modules are what an initramfs holds of the kernel.
func (k Kernel) Modules() ([]initramfs.Module, error) { return modules(k.Tar) }
