// The versions of glibc's functions that the library asks for, so that it loads on every system
// that torch's own wheels serve. exp, exp2, log and log2 got new versions in glibc 2.29. These
// compute the same and differ in how they report errors, which nothing here reads.
#pragma once

#if defined(__linux__) && defined(__x86_64__)
#include <features.h>
#if defined(__GLIBC__)
__asm__(".symver exp, exp@GLIBC_2.2.5");
__asm__(".symver exp2, exp2@GLIBC_2.2.5");
__asm__(".symver log, log@GLIBC_2.2.5");
__asm__(".symver log2, log2@GLIBC_2.2.5");
#endif
#endif
