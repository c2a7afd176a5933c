// Command guest is package vmmguest as a program.
package main

import "banger/internal/vmm/vmmguest"

func main() { vmmguest.Run() }
