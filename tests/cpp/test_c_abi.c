/* Uses fastdiff.h as a C program does. */
#define _POSIX_C_SOURCE 200112L /* setenv */

#include <fastdiff.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

static void check(int condition, const char* what) {
    if (condition) return;
    fprintf(stderr, "not true: %s\n", what);
    ++failures;
}

static int ask_to_stop(void* context) {
    ++*(int*)context;
    return 1;
}

static void check_status(fastdiff_status found, fastdiff_status wanted, const char* part) {
    if (found == wanted && strstr(fastdiff_last_error(), part) != NULL) return;
    fprintf(stderr, "status %d, wanted %d: '%s', wanted '%s'\n", (int)found, (int)wanted,
            fastdiff_last_error(), part);
    ++failures;
}

/* The graph of graph_file.cpp's every_op: inputs x, t, prompt, ids; two outputs. */
static void test_module(const char* path) {
    enum {
        batch = 2,
        height = 4,
        tokens = 3,
        x_size = batch * height * 16,
        prompt_size = batch * tokens * 6
    };
    static float x[x_size], t[batch], prompt[prompt_size], first[2][batch * 3 * 2 * height * 8],
        second[x_size];
    static int64_t ids[batch * tokens];
    fastdiff_array inputs[4] = {{x, 4, {batch, height, 4, 4}},
                                {t, 1, {batch}},
                                {prompt, 3, {batch, tokens, 6}},
                                {ids, 2, {batch, tokens}}};
    fastdiff_array outputs[2];
    fastdiff_module* module = NULL;
    fastdiff_session* session = NULL;
    fastdiff_tensor tensor;
    int polls = 0;
    size_t i;

    check_status(fastdiff_module_open("no such file", &module), FASTDIFF_ENGINE_DAMAGED,
                 "no such file cannot be opened");
    check_status(fastdiff_module_open(NULL, &module), FASTDIFF_INVALID_ARGUMENT, "path is NULL");
    check(module == NULL, "a failure sets nothing");
    check(fastdiff_module_open(path, &module) == FASTDIFF_OK, "the module opens");
    check(fastdiff_module_input_count(module) == 4, "it has four inputs");
    check(fastdiff_module_output_count(module) == 2, "and two outputs");
    check(fastdiff_module_input(module, 2, &tensor) == FASTDIFF_OK, "an input is described");
    check(tensor.rank == 3 && tensor.sizes[0] == 0 && tensor.sizes[2] == 6, "by its sizes");
    check(tensor.dtype == FASTDIFF_FLOAT32 && strcmp(tensor.name, "v2") == 0, "type and name");
    check(fastdiff_module_input(module, 3, &tensor) == FASTDIFF_OK && tensor.dtype == FASTDIFF_INT64,
          "ids are int64");
    check_status(fastdiff_module_output(module, 2, &tensor), FASTDIFF_INVALID_ARGUMENT,
                 "index is 2, wanted one below 2");

    check_status(fastdiff_session_open(module, 4000, &session), FASTDIFF_INVALID_ARGUMENT, "4000");
    check(fastdiff_session_open(module, 2, &session) == FASTDIFF_OK, "a session opens");
    fastdiff_module_close(module); /* the session keeps what it needs */
    for (i = 0; i < x_size; ++i) x[i] = (float)(i % 7) - 3.0f;
    for (i = 0; i < prompt_size; ++i) prompt[i] = (float)(i % 5) - 2.0f;
    check(fastdiff_session_output_sizes(session, inputs, outputs) == FASTDIFF_OK, "sizes of outputs");
    check(outputs[0].rank == 4 && outputs[0].sizes[1] == 3 && outputs[0].sizes[2] == 2 * height,
          "of the first");
    outputs[0].data = first[0];
    outputs[1].data = second;
    check(fastdiff_session_run(session, inputs, outputs, NULL, NULL) == FASTDIFF_OK, "it runs");
    check(fastdiff_session_set_threads(session, 1) == FASTDIFF_OK, "threads can be set");
    outputs[0].data = first[1];
    check(fastdiff_session_run(session, inputs, outputs, NULL, NULL) == FASTDIFF_OK, "it runs on one thread");
    check(memcmp(first[0], first[1], sizeof first[0]) == 0, "to the same result");
    check(first[0][0] != first[0][1], "that is not constant");
    check_status(fastdiff_session_run(session, inputs, outputs, ask_to_stop, &polls), FASTDIFF_STOPPED,
                 "cancelled");
    check(polls == 1, "after one poll");
    outputs[0].sizes[2] = 1;
    check_status(fastdiff_session_run(session, inputs, outputs, NULL, NULL), FASTDIFF_INVALID_ARGUMENT,
                 "found shape [2, 3, 1, 8], wanted [2, 3, 8, 8]");
    inputs[0].sizes[3] = 5;
    check_status(fastdiff_session_output_sizes(session, inputs, outputs), FASTDIFF_INVALID_ARGUMENT,
                 "v0: found shape");
    inputs[0].rank = 9;
    check_status(fastdiff_session_output_sizes(session, inputs, outputs), FASTDIFF_INVALID_ARGUMENT,
                 "found rank 9");
    check_status(fastdiff_session_sample(session, NULL, 1, 0, inputs, 1.0, NULL, NULL, NULL, NULL),
                 FASTDIFF_INVALID_ARGUMENT, "latents is NULL");
    fastdiff_session_close(session);
    fastdiff_session_close(NULL);
    fastdiff_module_close(NULL);
}

static void test_generator(void) {
    /* torch.randn(3, generator=torch.Generator().manual_seed(0)) */
    static const float wanted[3] = {1.540996f, -0.293429f, -2.178789f};
    float found[3];
    fastdiff_generator* generator = NULL;
    size_t i;
    check(fastdiff_generator_open(0, &generator) == FASTDIFF_OK, "a generator opens");
    check(fastdiff_generator_randn(generator, found, 3) == FASTDIFF_OK, "and draws");
    for (i = 0; i < 3; ++i)
        check(found[i] - wanted[i] < 1e-5f && wanted[i] - found[i] < 1e-5f, "PyTorch's numbers");
    fastdiff_generator_close(generator);
}

int main(int argc, char** argv) {
    const char* isa;
    check(fastdiff_abi_version() == FASTDIFF_ABI_VERSION, "the library has the header's ABI version");
    check(strchr(fastdiff_version(), '.') != NULL, "the version has a dot");
    check(strcmp(fastdiff_last_error(), "") == 0, "no error before the first");

    check(fastdiff_isa_available("portable") == 1, "portable is always available");
    check(fastdiff_isa_available("mmx") == 0, "an unknown name is not available");
    check(fastdiff_isa_available(NULL) == 0, "no name is not available");

    setenv("FASTDIFF_ISA", "mmx", 1);
    check(fastdiff_isa() == NULL, "an unknown FASTDIFF_ISA is an error");
    check(strstr(fastdiff_last_error(), "'mmx'") != NULL, "the error names the value");
    unsetenv("FASTDIFF_ISA");
    isa = fastdiff_isa();
    check(isa != NULL && fastdiff_isa_available(isa) == 1, "the one in use is available");
    check(argc == 2, "the argument is a module file");
    if (argc == 2) test_module(argv[1]);
    test_generator();
    if (failures == 0) puts("all passed");
    return failures != 0;
}
