/* The stand-in's answers, byte for byte: standin.c sends them, load.c compares with them.
 *
 * The shapes are vLLM 0.32's. A request's `seed` comes back in the id, so that an answer which
 * reached the wrong client is seen; every streamed word is numbered, so that loss and reordering are.
 * Messages and embeddings have no seed: there it is the first word of the text, and of an embedding
 * it is the first number as well.
 */
#ifndef SHAPES_H
#define SHAPES_H

#include <stdio.h>
#include <string.h>

#define CREATED 1795228800
#define FIRST_SEED 1000000000LL /* ten digits: JSON has no leading zeros, and the length must hold */
#define WORDS 48
#define DIMENSIONS 384
#define ANSWER_CAP 8192
#define PIECE_CAP 768

enum dialect { CHAT, COMPLETIONS, MESSAGES, EMBEDDINGS, DIALECTS };

static const char *const DIALECT_PATHS[DIALECTS] = {
    "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/embeddings"};

/* The dialect of a target, its query string left out; -1 for any other path. */
static int dialect_of(const char *target, size_t len) {
    const char *query = memchr(target, '?', len);
    if (query) len = (size_t)(query - target);
    for (int d = 0; d < DIALECTS; d++)
        if (strlen(DIALECT_PATHS[d]) == len && !memcmp(DIALECT_PATHS[d], target, len)) return d;
    return -1;
}

/* A stream as the list of its events; script_next moves to the next one. */
struct script {
    enum dialect dialect;
    const char *model;
    long long seed;
    int words; /* content events */
    int usage; /* the request had include_usage */
    int step;
    char kind;
    int len;       /* of text */
    int digits_at; /* where the word's seven digits lie */
    char text[PIECE_CAP];
};

static void script_start(struct script *s, enum dialect dialect, const char *model, long long seed,
                         int words, int usage) {
    s->dialect = dialect, s->model = model, s->seed = seed, s->words = words, s->usage = usage;
    s->step = 0, s->kind = 0;
}

static char script_kind(const struct script *s) {
    static const char *const LEAD[] = {"R", "", "MB"};
    const char *lead = LEAD[s->dialect];
    const char *tail = s->dialect == MESSAGES ? "EST" : s->usage ? "FUD" : "FD";
    int at = s->step, leading = (int)strlen(lead);
    if (at < leading) return lead[at];
    at -= leading;
    return at < s->words ? 'C' : tail[at - s->words];
}

static void put_digits(char *at, int number) {
    for (int i = 6; i >= 0; i--, number /= 10) at[i] = (char)('0' + number % 10);
}

static int fill_openai(struct script *s, char *out) {
    int chat = s->dialect == CHAT, words = s->words;
    if (s->kind == 'D') return snprintf(out, PIECE_CAP, "data: [DONE]\n\n");
    int n = snprintf(out, PIECE_CAP,
                     "data: {\"id\":\"%s-%032lld\",\"object\":\"%s\",\"created\":%d,"
                     "\"model\":\"%s\",\"choices\":[",
                     chat ? "chatcmpl" : "cmpl", s->seed,
                     chat ? "chat.completion.chunk" : "text_completion", CREATED, s->model);
    char *to = out + n;
    size_t room = (size_t)(PIECE_CAP - n);
    if (s->kind == 'U')
        n += snprintf(to, room,
                      "],\"usage\":{\"prompt_tokens\":11,\"total_tokens\":%d,"
                      "\"completion_tokens\":%d}}\n\n",
                      11 + words, words);
    else if (s->kind == 'R')
        n += snprintf(to, room,
                      "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                      "\"logprobs\":null,\"finish_reason\":null}],"
                      "\"prompt_token_ids\":null,\"prompt_text\":null}\n\n");
    else {
        const char *word = s->kind == 'C' ? " w0000000" : "";
        const char *reason = s->kind == 'C' ? "null" : "\"length\",\"stop_reason\":null";
        n += snprintf(to, room,
                      chat ? "{\"index\":0,\"delta\":{\"content\":\"%s\"},\"logprobs\":null,"
                             "\"finish_reason\":%s,\"token_ids\":null}]}\n\n"
                           : "{\"index\":0,\"text\":\"%s\",\"logprobs\":null,"
                             "\"finish_reason\":%s,\"token_ids\":null}]}\n\n",
                      word, reason);
    }
    return n;
}

static int fill_messages(const struct script *s, char *out) {
    switch (s->kind) {
    case 'M':
        return snprintf(out, PIECE_CAP,
                        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{"
                        "\"id\":\"chatcmpl-%032lld\",\"type\":\"message\",\"role\":\"assistant\","
                        "\"content\":[],\"model\":\"%s\",\"stop_reason\":null,"
                        "\"stop_sequence\":null,\"usage\":{\"input_tokens\":11,"
                        "\"output_tokens\":0}}}\n\n",
                        s->seed, s->model);
    case 'B':
        return snprintf(out, PIECE_CAP,
                        "event: content_block_start\ndata: {\"type\":\"content_block_start\","
                        "\"content_block\":{\"type\":\"text\",\"text\":\"\"},\"index\":0}\n\n");
    case 'C':
        return snprintf(out, PIECE_CAP,
                        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\","
                        "\"delta\":{\"type\":\"text_delta\",\"text\":\" w0000000\"},"
                        "\"index\":0}\n\n");
    case 'E':
        return snprintf(out, PIECE_CAP,
                        "event: content_block_stop\ndata: {\"type\":\"content_block_stop\","
                        "\"index\":0}\n\n");
    case 'S':
        return snprintf(out, PIECE_CAP,
                        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{"
                        "\"stop_reason\":\"max_tokens\"},\"usage\":{\"input_tokens\":11,"
                        "\"output_tokens\":%d}}\n\n",
                        s->words);
    default:
        return snprintf(out, PIECE_CAP,
                        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n");
    }
}

/* Puts the next event into text and len; 0 when the stream is over. */
static int script_next(struct script *s) {
    char kind = script_kind(s);
    if (!kind) return 0;
    int again = kind == 'C' && s->kind == 'C';
    s->kind = kind;
    if (!again) {
        s->len = s->dialect == MESSAGES ? fill_messages(s, s->text) : fill_openai(s, s->text);
        char *word = kind == 'C' ? strstr(s->text, "\" w0000000") : NULL;
        s->digits_at = word ? (int)(word - s->text) + 3 : -1;
    }
    int leading = s->dialect == CHAT ? 1 : s->dialect == MESSAGES ? 2 : 0;
    if (kind == 'C') put_digits(s->text + s->digits_at, s->step - leading);
    s->step++;
    return 1;
}

/* What follows the first number of every vector; each number is as JSON writes it again. */
static const char *rest_of_vector(void) {
    static char text[DIMENSIONS * 16];
    if (!*text)
        for (int i = 1, n = 0; i < DIMENSIONS; i++)
            n += snprintf(text + n, sizeof text - (size_t)n, ",%s0.0%06d3", i & 1 ? "-" : "",
                          100000 + i * 7919 % 900000);
    return text;
}

/* An answer that is not streamed, about 900 bytes, a vector about 5 KB; returns its length. */
static int answer(char *out, enum dialect dialect, const char *model, long long seed) {
    char words[WORDS * 9 + 1];
    for (int i = 0; i < WORDS; i++) {
        memcpy(words + i * 9, " w", 2);
        put_digits(words + i * 9 + 2, i);
    }
    words[WORDS * 9] = 0;
    switch (dialect) {
    case CHAT:
        return snprintf(out, ANSWER_CAP,
                        "{\"id\":\"chatcmpl-%032lld\",\"object\":\"chat.completion\","
                        "\"created\":%d,\"model\":\"%s\",\"choices\":[{\"index\":0,\"message\":{"
                        "\"role\":\"assistant\",\"content\":\"%s\",\"refusal\":null,"
                        "\"annotations\":null,\"audio\":null,\"function_call\":null,"
                        "\"reasoning\":null},\"logprobs\":null,\"finish_reason\":\"stop\","
                        "\"stop_reason\":null,\"token_ids\":null}],\"service_tier\":null,"
                        "\"system_fingerprint\":null,\"usage\":{\"prompt_tokens\":11,"
                        "\"total_tokens\":%d,\"completion_tokens\":%d,"
                        "\"prompt_tokens_details\":null},\"prompt_logprobs\":null,"
                        "\"prompt_token_ids\":null,\"kv_transfer_params\":null}",
                        seed, CREATED, model, words, 11 + WORDS, WORDS);
    case COMPLETIONS:
        return snprintf(out, ANSWER_CAP,
                        "{\"id\":\"cmpl-%032lld\",\"object\":\"text_completion\",\"created\":%d,"
                        "\"model\":\"%s\",\"choices\":[{\"index\":0,\"text\":\"%s\","
                        "\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null,"
                        "\"token_ids\":null,\"prompt_logprobs\":null}],\"service_tier\":null,"
                        "\"system_fingerprint\":null,\"usage\":{\"prompt_tokens\":11,"
                        "\"total_tokens\":%d,\"completion_tokens\":%d,"
                        "\"prompt_tokens_details\":null},\"kv_transfer_params\":null}",
                        seed, CREATED, model, words, 11 + WORDS, WORDS);
    case MESSAGES:
        return snprintf(out, ANSWER_CAP,
                        "{\"id\":\"chatcmpl-%032lld\",\"type\":\"message\",\"role\":\"assistant\","
                        "\"content\":[{\"type\":\"text\",\"text\":\"%s\"}],\"model\":\"%s\","
                        "\"stop_reason\":\"end_turn\",\"stop_sequence\":null,\"usage\":{"
                        "\"input_tokens\":11,\"output_tokens\":%d}}",
                        seed, words, model, WORDS);
    default:
        return snprintf(out, ANSWER_CAP,
                        "{\"id\":\"embd-%032lld\",\"object\":\"list\",\"created\":%d,"
                        "\"model\":\"%s\",\"data\":[{\"index\":0,\"object\":\"embedding\","
                        "\"embedding\":[0.%010lld7%s]}],\"usage\":{"
                        "\"prompt_tokens\":11,\"total_tokens\":11,\"completion_tokens\":0,"
                        "\"prompt_tokens_details\":null}}",
                        seed, CREATED, model, seed, rest_of_vector());
    }
}

#endif
