/* The C interface of fastdiff. A program links libfastdiff and needs neither Python nor PyTorch.
 *
 * Strings that are returned belong to the library and live until the process ends, but for
 * fastdiff_last_error, whose string lives until the next call on the same thread. All functions may be called
 * from any thread.
 */
#ifndef FASTDIFF_H
#define FASTDIFF_H

#include <stdint.h>

#if defined(FASTDIFF_BUILDING)
#define FASTDIFF_API __attribute__((visibility("default")))
#else
#define FASTDIFF_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised by one whenever a function changes or disappears; additions leave it. */
#define FASTDIFF_ABI_VERSION 1

/* FASTDIFF_ABI_VERSION of the library that was loaded; compare it with the header's. */
FASTDIFF_API uint32_t fastdiff_abi_version(void);

/* Version of the library, as "0.1.0". */
FASTDIFF_API const char* fastdiff_version(void);

/* The instruction set that the kernels run with: "avx512", "avx2" or "portable". The fastest that the CPU and
 * the operating system support, or the one named by the environment variable FASTDIFF_ISA. NULL when that
 * variable names one that is unknown or that this CPU lacks; fastdiff_last_error says which. */
FASTDIFF_API const char* fastdiff_isa(void);

/* 1 when kernels for the instruction set of this name are compiled in and this machine runs them; 0 when not,
 * or when the name is NULL or unknown. */
FASTDIFF_API int fastdiff_isa_available(const char* name);

/* What made the last call on this thread fail; "" when none has. */
FASTDIFF_API const char* fastdiff_last_error(void);

#ifdef __cplusplus
}
#endif

#endif /* FASTDIFF_H */
