"""The benchmark's comparators and measuring instruments, as Composer algorithms."""
