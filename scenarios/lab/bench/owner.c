/* Postgres refuses root, and in a lab CRIU can dump root's processes only: to it we are who owns its data. */
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static uid_t owner(void) {
    struct stat data;
    const char *path = getenv("PGDATA");
    return path != NULL && stat(path, &data) == 0 ? data.st_uid : 0;
}

uid_t getuid(void) { return owner(); }

uid_t geteuid(void) { return owner(); }
