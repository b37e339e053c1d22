/* Runs a packed text encoder: ids of tokens to vectors.
 *
 *     tz_model *model = tz_model_open("model.tz");
 *     const int32_t ids[] = {101, 7592, 102, 101, 2088, 102}, starts[] = {0, 3, 6};
 *     float *vectors = malloc(2 * tz_model_dim(model) * sizeof(float));
 *     tz_model_encode(model, ids, starts, 2, vectors, 0);
 *
 * `ternarize export --to c` writes the library, the weights and this file. Functions may be called from any thread, and a model
 * may be used by several threads at a time.
 */
#ifndef TERNARIZE_H
#define TERNARIZE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What tz_model_encode returns: */
#define TZ_OK 0         /* it has done its work */
#define TZ_NO_MEMORY -1 /* memory ran out */
#define TZ_REFUSED -2   /* an argument is invalid, and tz_why says what is wrong with it; nothing was written */

typedef struct tz_model tz_model;

/* Opens a file of weights. Returns null if it can't be read or is damaged, or if memory ran out; tz_why then says which.
 * The file is read into memory, and may be removed afterwards. */
tz_model *tz_model_open(const char *path);

/* Returns the number of dimensions of a vector. */
int tz_model_dim(const tz_model *model);

/* Returns the most tokens that a text may have, special tokens included. */
int tz_model_limit(const tz_model *model);

/* Encodes texts. A vector does not depend on the texts beside it, nor on the number of threads.
 *   ids: the tokens of all texts, one after the other, with special tokens, as the model's tokenizer gives them
 *   starts: the place in `ids` where each text begins, which is 0 for the first, and the place where the last one ends:
 *     [sequences + 1]
 *   out: the vectors, [sequences][tz_model_dim]
 *   threads: 1 to 1024; 0: as many as there are processors that this process may use */
int tz_model_encode(const tz_model *model, const int32_t *ids, const int32_t *starts, int sequences, float *out, int threads);

/* Frees a model; nothing happens for null. */
void tz_model_close(tz_model *model);

/* Returns what was wrong with the last call on this thread that failed, as a sentence. */
const char *tz_why(void);

#ifdef __cplusplus
}
#endif

#endif
