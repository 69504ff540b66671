//! The arithmetic of hurtle, and the threads that run it.
