/* A stand-in for the pyxis plugin: takes its options of srun and sbatch, runs no container, and tells every task what
 * was asked for in FAKE_PYXIS_* variables (--container-image=X becomes FAKE_PYXIS_CONTAINER_IMAGE=X). */
#include <ctype.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <string.h>

SPANK_PLUGIN(fakepyxis, 1)

static const struct {
  const char *name;
  int has_value;
} options[] = {
    {"container-image", 1},        {"container-mounts", 1},       {"container-workdir", 1},
    {"container-name", 1},         {"container-env", 1},          {"container-save", 1},
    {"container-mount-home", 0},   {"no-container-mount-home", 0}, {"container-remap-root", 0},
    {"no-container-remap-root", 0}, {"container-entrypoint", 0},   {"no-container-entrypoint", 0},
    {"container-writable", 0},     {"container-readonly", 0},
};
enum { COUNT = sizeof options / sizeof *options };

static char *values[COUNT];

static int take(int index, const char *value, int remote) {
  (void)remote;
  values[index] = strdup(value && *value ? value : "1");
  return 0;
}

int slurm_spank_init(spank_t spank, int argc, char **argv) {
  (void)argc;
  (void)argv;
  for (int i = 0; i < COUNT; i++) {
    struct spank_option option = {(char *)options[i].name,
                                  options[i].has_value ? "VALUE" : NULL,
                                  "stand-in for pyxis",
                                  options[i].has_value,
                                  i,
                                  take};
    if (spank_option_register(spank, &option) != ESPANK_SUCCESS)
      return -1;
  }
  return 0;
}

int slurm_spank_task_init(spank_t spank, int argc, char **argv) {
  (void)argc;
  (void)argv;
  for (int i = 0; i < COUNT; i++) {
    char variable[64];
    if (!values[i])
      continue;
    snprintf(variable, sizeof variable, "FAKE_PYXIS_%s", options[i].name);
    for (char *c = variable; *c; c++)
      *c = *c == '-' ? '_' : (char)toupper(*c);
    spank_setenv(spank, variable, values[i], 1);
  }
  return 0;
}
