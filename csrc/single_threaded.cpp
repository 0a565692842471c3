// The reference counts of libstdc++'s shared_ptr, which torch's headers use, ask a variable of glibc
// whether there is a second thread. glibc 2.32 was the first to have it, and nothing else here needs
// one that new. This one is the module's own and never says so: counts are always atomic.
extern "C" {
extern char __libc_single_threaded;
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
