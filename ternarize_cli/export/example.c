/* Encodes texts that are given as ids of tokens, one text a line on stdin, and prints a vector a line:
 *
 *     cc example.c -L. -lternarize -Wl,-rpath,'$ORIGIN' -o example
 *     echo "101 7592 102" | ./example model.tz
 *
 * Ids come from the model's tokenizer, special tokens included. Numbers have as many digits as a float needs to come back bit
 * for bit.
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include "ternarize.h"

#define SPACE " \t\r\n"

static int fail(const char *what) {
  fprintf(stderr, "%s\n", what);
  return 1;
}

int main(int count, char **arguments) {
  if (count != 2) return fail("usage: example model.tz < ids");
  tz_model *model = tz_model_open(arguments[1]);
  if (!model) return fail(tz_why());
  const int dim = tz_model_dim(model), limit = tz_model_limit(model);
  int32_t *ids = malloc(limit * sizeof *ids);
  float *vector = malloc(dim * sizeof *vector);
  char *line = NULL;
  size_t room = 0;
  ssize_t length;
  if (!ids || !vector) return fail("not enough memory");
  while ((length = getline(&line, &room, stdin)) > 0) {
    int32_t starts[] = {0, 0};
    for (char *at = line, *end; (at += strspn(at, SPACE)) != line + length; at = end) {
      errno = 0;
      const long id = strtol(at, &end, 10);
      const int is_number = end != at && (!*end || strchr(SPACE, *end));
      if (!is_number || errno || id < 0 || id > INT32_MAX) return fail("a line has something other than ids between its blanks");
      if (starts[1] == limit) return fail("a text has more tokens than the model reads");
      ids[starts[1]++] = (int32_t)id;
    }
    if (tz_model_encode(model, ids, starts, 1, vector, 0) != TZ_OK) return fail(tz_why());
    for (int i = 0; i < dim; ++i) printf("%.9g%c", vector[i], i + 1 < dim ? ' ' : '\n');
  }
  if (ferror(stdin)) return fail("the ids can't be read");
  if (fflush(stdout) || ferror(stdout)) return fail("the vectors can't be written");
  free(line);
  free(vector);
  free(ids);
  tz_model_close(model);
  return 0;
}
