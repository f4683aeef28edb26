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

int main(void) {
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
    if (failures == 0) puts("all passed");
    return failures != 0;
}
