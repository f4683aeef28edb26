/* The C interface of fastdiff. A program links libfastdiff and needs neither Python nor PyTorch.
 *
 * Strings that are returned belong to the library and live until the process ends, but for
 * fastdiff_last_error, whose string lives until the next call on the same thread. All functions may be called
 * from any thread; what changes a generator must not be called by two threads at once.
 *
 * Functions that can fail return a fastdiff_status, and fastdiff_last_error says in one line what was found
 * and what was wanted. Pointers that they set are set only when they return FASTDIFF_OK.
 */
#ifndef FASTDIFF_H
#define FASTDIFF_H

#include <stddef.h>
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
#define FASTDIFF_ABI_VERSION 2

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

/* ---- modules: the .fdn files of an engine folder ---- */

typedef enum fastdiff_status {
    FASTDIFF_OK = 0,
    FASTDIFF_INVALID_ARGUMENT = 1, /* an argument that cannot be used */
    FASTDIFF_ENGINE_DAMAGED = 2,   /* a file that is missing, damaged or none of fastdiff's */
    FASTDIFF_ENGINE_VERSION = 3,   /* a file in a format that this version does not read */
    FASTDIFF_OUT_OF_MEMORY = 4,
    FASTDIFF_STOPPED = 5, /* the caller's callback said so */
    FASTDIFF_INTERNAL = 6 /* anything else, such as no more threads */
} fastdiff_status;

typedef enum fastdiff_dtype { FASTDIFF_FLOAT32 = 0, FASTDIFF_INT64 = 1 } fastdiff_dtype;

#define FASTDIFF_MAX_RANK 8

/* An input or output of a module. A size of 0 may differ from call to call. The name lives as long as the
 * module. */
typedef struct fastdiff_tensor {
    const char* name;
    fastdiff_dtype dtype;
    size_t rank;
    size_t sizes[FASTDIFF_MAX_RANK];
} fastdiff_tensor;

/* The caller's memory: contiguous elements of the tensor's dtype, aligned to their size. */
typedef struct fastdiff_array {
    void* data;
    size_t rank;
    size_t sizes[FASTDIFF_MAX_RANK];
} fastdiff_array;

typedef struct fastdiff_module fastdiff_module;
typedef struct fastdiff_session fastdiff_session;

/* Maps and checks a module's file. Weights are read when they are first used. */
FASTDIFF_API fastdiff_status fastdiff_module_open(const char* path, fastdiff_module** module);
/* Sessions of the module may go on. NULL is allowed. */
FASTDIFF_API void fastdiff_module_close(fastdiff_module* module);

FASTDIFF_API size_t fastdiff_module_input_count(const fastdiff_module* module);
FASTDIFF_API size_t fastdiff_module_output_count(const fastdiff_module* module);
FASTDIFF_API fastdiff_status fastdiff_module_input(const fastdiff_module* module, size_t index,
                                                   fastdiff_tensor* tensor);
FASTDIFF_API fastdiff_status fastdiff_module_output(const fastdiff_module* module, size_t index,
                                                    fastdiff_tensor* tensor);

/* ---- sessions: memory and threads of one caller; any number of them share a module's weights ---- */

/* `threads` 0 stands for one per processor that the process may use. */
FASTDIFF_API fastdiff_status fastdiff_session_open(const fastdiff_module* module, size_t threads,
                                                   fastdiff_session** session);
/* NULL is allowed. */
FASTDIFF_API void fastdiff_session_close(fastdiff_session* session);
FASTDIFF_API fastdiff_status fastdiff_session_set_threads(fastdiff_session* session, size_t threads);

/* Sets rank and sizes of all outputs for inputs of these ranks and sizes; no data is touched. Arrays are in
 * the module's order. */
FASTDIFF_API fastdiff_status fastdiff_session_output_sizes(fastdiff_session* session,
                                                           const fastdiff_array* inputs,
                                                           fastdiff_array* outputs);

/* Polled between kernels; anything but 0 stops the call with FASTDIFF_STOPPED. */
typedef int (*fastdiff_poll)(void* context);

/* Computes the outputs, whose rank and sizes must be those of fastdiff_session_output_sizes. `poll` may be
 * NULL. Calls on one session take turns. */
FASTDIFF_API fastdiff_status fastdiff_session_run(fastdiff_session* session, const fastdiff_array* inputs,
                                                  const fastdiff_array* outputs, fastdiff_poll poll,
                                                  void* context);

/* ---- sampling ---- */

/* The random numbers of torch.Generator("cpu").manual_seed(seed), bit for bit. */
typedef struct fastdiff_generator fastdiff_generator;
FASTDIFF_API fastdiff_status fastdiff_generator_open(uint64_t seed, fastdiff_generator** generator);
FASTDIFF_API void fastdiff_generator_close(fastdiff_generator* generator);
/* What torch.randn(size) gives next. */
FASTDIFF_API fastdiff_status fastdiff_generator_randn(fastdiff_generator* generator, float* out, size_t size);

#define FASTDIFF_MAX_HISTORY 8
#define FASTDIFF_NO_SLOT ((size_t)-1)

/* One evaluation of the model m at the sample x, and the update that follows it:
 *
 *   d  = clip(estimate_sample·x + estimate_output·m, -estimate_limit, estimate_limit)   m without an estimate
 *   x' = sample·x + output·m + Σ history_coefs[k]·slot(history_slots[k]) + estimate_weight·d + noise·z
 *
 * where m is the model's output for input_scale·x after guidance, and z fresh noise. Before the update, slots
 * have what earlier steps saved; then x goes into slot save_sample, and d into slot save_output, unless they
 * are FASTDIFF_NO_SLOT. An estimate_limit of INFINITY does not clip.
 *
 * Members that begin with has_ say whether the step has what follows them; 0 leaves it out. A step without
 * noise draws none; one whose noise is 0 draws and does not use it. The step's guidance replaces that of the
 * call. */
typedef struct fastdiff_step {
    double timestep, sample, output, input_scale;
    size_t history_count;
    size_t history_slots[FASTDIFF_MAX_HISTORY];
    double history_coefs[FASTDIFF_MAX_HISTORY];
    size_t save_sample, save_output;
    int has_noise;
    double noise;
    int has_estimate;
    double estimate_sample, estimate_output, estimate_limit, estimate_weight;
    int has_guidance;
    double guidance;
} fastdiff_step;

/* Called after each step with the number of those done, of all, and the latents, valid until it returns.
 * Anything but 0 stops the loop with FASTDIFF_STOPPED. */
typedef int (*fastdiff_step_callback)(void* context, size_t done, size_t total, const float* latents);

/* Runs a sampler's steps over a U-Net with inputs "sample" and "timestep".
 *
 * inputs     one array per input of the module; those of "sample" and "timestep" are not looked at. Where the
 *            guidance of any step is not 1 their batch is twice that of the latents: first without the
 * prompt, then with it; classifier-free guidance is uncond + guidance · (cond - uncond). latents    unit
 * noise times the sampler's first sigma; the result at the end. After an error their contents are as they
 * were. generator  draws one array of noise for each step that has noise; NULL when none has callback   may
 * be NULL */
FASTDIFF_API fastdiff_status fastdiff_session_sample(fastdiff_session* session, const fastdiff_step* steps,
                                                     size_t step_count, size_t slot_count,
                                                     const fastdiff_array* inputs, double guidance,
                                                     fastdiff_generator* generator,
                                                     const fastdiff_array* latents,
                                                     fastdiff_step_callback callback, void* context);

#ifdef __cplusplus
}
#endif

#endif /* FASTDIFF_H */
