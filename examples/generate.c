/* A picture from an engine folder and token ids, without Python:
 *
 *   generate ENGINE OUT.ppm SEED STEPS GUIDANCE LATENT_CHANNELS HEIGHT WIDTH SCALING ID... / ID...
 *
 * HEIGHT and WIDTH count latent pixels, SCALING is the VAE's scaling factor. The ids before the slash are the
 * prompt's, those after it the negative prompt's, of equal number. The sampler is DDIM with the noise
 * schedule of Stable Diffusion. Ids, channels and scaling factor are in the engine's tokenizer and
 * engine.json.
 *
 *   cc generate.c -lfastdiff -lm
 */
#include <fastdiff.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { train_steps = 1000, steps_offset = 1 };

static void check(fastdiff_status status) {
    if (status == FASTDIFF_OK) return;
    fprintf(stderr, "generate: %s\n", fastdiff_last_error());
    exit(1);
}

static void* allocate(size_t bytes) {
    void* memory = malloc(bytes);
    if (memory == NULL) {
        fprintf(stderr, "generate: out of memory\n");
        exit(1);
    }
    return memory;
}

static size_t elements(const fastdiff_array* array) {
    size_t size = 1, axis;
    for (axis = 0; axis < array->rank; ++axis) size *= array->sizes[axis];
    return size;
}

static fastdiff_module* open_file(const char* folder, const char* name) {
    const size_t size = strlen(folder) + strlen(name) + 6;
    char* path = allocate(size);
    fastdiff_module* module;
    snprintf(path, size, "%s/%s.fdn", folder, name);
    check(fastdiff_module_open(path, &module));
    free(path);
    return module;
}

static fastdiff_session* open_module(const char* folder, const char* name) {
    fastdiff_module* module = open_file(folder, name);
    fastdiff_session* session;
    check(fastdiff_session_open(module, 0, &session));
    fastdiff_module_close(module); /* the session keeps what it needs */
    return session;
}

/* The only output of a module for its only input. */
static fastdiff_array run(fastdiff_session* session, const fastdiff_array* input) {
    fastdiff_array output;
    check(fastdiff_session_output_sizes(session, input, &output));
    output.data = allocate(elements(&output) * sizeof(float));
    check(fastdiff_session_run(session, input, &output, NULL, NULL));
    return output;
}

/* What the U-Net attends to, [2, tokens, hidden], for two rows of token ids. The encoder's other inputs are
 * vectors in the place of words, here none; its other outputs are hidden states of earlier layers. */
static fastdiff_array encode(const char* folder, int64_t* ids, size_t tokens) {
    enum { most = 4 };
    fastdiff_module* module = open_file(folder, "text_encoder");
    const size_t input_count = fastdiff_module_input_count(module);
    const size_t output_count = fastdiff_module_output_count(module);
    fastdiff_array inputs[most] = {{ids, 2, {2, tokens}}}, outputs[most];
    fastdiff_session* session;
    size_t i;
    if (input_count > most || output_count > most) {
        fprintf(stderr, "generate: the text encoder has more inputs or outputs than %d\n", most);
        exit(1);
    }
    for (i = 1; i < input_count; ++i) {
        fastdiff_tensor tensor;
        check(fastdiff_module_input(module, i, &tensor));
        inputs[i] = (fastdiff_array){NULL, 3, {2, tokens, tensor.sizes[2]}};
        inputs[i].data = allocate(elements(&inputs[i]) * sizeof(float));
        memset(inputs[i].data, 0, elements(&inputs[i]) * sizeof(float));
    }
    check(fastdiff_session_open(module, 0, &session));
    fastdiff_module_close(module);
    check(fastdiff_session_output_sizes(session, inputs, outputs));
    for (i = 0; i < output_count; ++i) {
        outputs[i].data = allocate(elements(&outputs[i]) * sizeof(float));
    }
    check(fastdiff_session_run(session, inputs, outputs, NULL, NULL));
    fastdiff_session_close(session);
    for (i = 1; i < input_count; ++i) free(inputs[i].data);
    for (i = 1; i < output_count; ++i) free(outputs[i].data);
    return outputs[0];
}

/* DDIM (Song, Meng and Ermon, eq. 12) with eta 0 for a model that predicts noise: betas are scaled linear,
 * timesteps leading. ᾱ is rounded to float where diffusers rounds it: 1 - ᾱ is small. */
static void ddim(fastdiff_step* steps, int count) {
    const double first = sqrt(0.00085), last = sqrt(0.012);
    float alpha_bar[train_steps], product = 1.0f;
    int i;
    for (i = 0; i < train_steps; ++i) {
        const float root = (float)(first + (last - first) * i / (train_steps - 1));
        product *= 1.0f - root * root;
        alpha_bar[i] = product;
    }
    for (i = 0; i < count; ++i) {
        const int t = (count - 1 - i) * (train_steps / count) + steps_offset;
        const int previous = t - train_steps / count;
        const double a = alpha_bar[t], b = alpha_bar[previous >= 0 ? previous : 0];
        memset(&steps[i], 0, sizeof steps[i]);
        steps[i].timestep = t;
        steps[i].input_scale = 1.0;
        steps[i].sample = sqrt(b / a);
        steps[i].output = sqrt(1.0 - b) - sqrt(b / a) * sqrt(1.0 - a);
        steps[i].save_sample = FASTDIFF_NO_SLOT;
        steps[i].save_output = FASTDIFF_NO_SLOT;
    }
}

static int show(void* context, size_t done, size_t total, const float* latents) {
    (void)context;
    (void)latents;
    fprintf(stderr, "\rstep %lu of %lu%s", (unsigned long)done, (unsigned long)total,
            done == total ? "\n" : "");
    return 0;
}

/* [1, 3, height, width] in -1 … 1 as a binary portable pixmap. */
static void write_picture(const char* path, const fastdiff_array* picture) {
    const size_t height = picture->sizes[2], width = picture->sizes[3], plane = height * width;
    const float* values = picture->data;
    FILE* file = fopen(path, "wb");
    size_t pixel, channel;
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    fprintf(file, "P6\n%lu %lu\n255\n", (unsigned long)width, (unsigned long)height);
    for (pixel = 0; pixel < plane; ++pixel) {
        for (channel = 0; channel < 3; ++channel) {
            const float value = values[channel * plane + pixel] * 0.5f + 0.5f;
            fputc((int)lrintf(fminf(fmaxf(value, 0.0f), 1.0f) * 255.0f), file);
        }
    }
    if (fclose(file) != 0) {
        perror(path);
        exit(1);
    }
}

int main(int argc, char** argv) {
    enum { fixed = 10 };
    int slash = fixed, i;
    if (argc < fixed + 3) {
        fprintf(stderr,
                "usage: generate ENGINE OUT.ppm SEED STEPS GUIDANCE LATENT_CHANNELS HEIGHT WIDTH SCALING "
                "ID... / ID...\n");
        return 2;
    }
    while (slash < argc && strcmp(argv[slash], "/") != 0) ++slash;
    const size_t tokens = (size_t)(slash - fixed);
    const int count = atoi(argv[4]);
    if (tokens == 0 || argc - slash - 1 != (int)tokens || count < 1 || count > train_steps) {
        fprintf(stderr, "generate: wanted as many ids after the slash as before it, and 1 to %d steps\n",
                train_steps);
        return 2;
    }

    /* Prompts: without the prompt first, as guidance wants them. */
    int64_t* ids = allocate(2 * tokens * sizeof *ids);
    for (i = 0; i < (int)tokens; ++i) {
        ids[i] = atoll(argv[slash + 1 + i]);
        ids[tokens + (size_t)i] = atoll(argv[fixed + i]);
    }
    const fastdiff_array states = encode(argv[1], ids, tokens);

    /* Latents. DDIM starts from unit noise. */
    fastdiff_array latents = {
        NULL, 4, {1, (size_t)atol(argv[6]), (size_t)atol(argv[7]), (size_t)atol(argv[8])}};
    latents.data = allocate(elements(&latents) * sizeof(float));
    fastdiff_generator* generator;
    check(fastdiff_generator_open(strtoull(argv[3], NULL, 10), &generator));
    check(fastdiff_generator_randn(generator, latents.data, elements(&latents)));
    fastdiff_generator_close(generator);

    fastdiff_step* steps = allocate((size_t)count * sizeof *steps);
    ddim(steps, count);
    fastdiff_session* unet = open_module(argv[1], "unet");
    const fastdiff_array inputs[3] = {{NULL, 0, {0}}, {NULL, 0, {0}}, states}; /* sample, timestep, prompts */
    check(fastdiff_session_sample(unet, steps, (size_t)count, 0, inputs, atof(argv[5]), NULL, &latents, show,
                                  NULL));
    fastdiff_session_close(unet);

    for (size_t k = 0; k < elements(&latents); ++k) ((float*)latents.data)[k] /= (float)atof(argv[9]);
    fastdiff_session* decoder = open_module(argv[1], "vae_decoder");
    const fastdiff_array picture = run(decoder, &latents);
    fastdiff_session_close(decoder);
    write_picture(argv[2], &picture);
    free(ids);
    free(states.data);
    free(latents.data);
    free(picture.data);
    free(steps);
    return 0;
}
