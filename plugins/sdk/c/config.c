/* The configuration of a plugin: the keys of one JSON object. Enough for a plugin's options, not a JSON library. */
#include "flumen.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const uint8_t *at;
    const uint8_t *end;
} cursor;

static void skip_space(cursor *c) {
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\n' || *c->at == '\t' || *c->at == '\r')) {
        c->at++;
    }
}

static bool take(cursor *c, uint8_t byte) {
    skip_space(c);
    if (c->at < c->end && *c->at == byte) {
        c->at++;
        return true;
    }
    return false;
}

static int hex_digit(uint8_t byte) {
    if (byte >= '0' && byte <= '9') return byte - '0';
    if (byte >= 'a' && byte <= 'f') return byte - 'a' + 10;
    if (byte >= 'A' && byte <= 'F') return byte - 'A' + 10;
    return -1;
}

static bool hex4(cursor *c, uint32_t *out) {
    *out = 0;
    for (int i = 0; i < 4; i++, c->at++) {
        if (c->at >= c->end || hex_digit(*c->at) < 0) {
            return false;
        }
        *out = *out << 4 | (uint32_t)hex_digit(*c->at);
    }
    return true;
}

static uint8_t *put_utf8(uint8_t *out, uint32_t code) {
    if (code < 0x80) {
        *out++ = (uint8_t)code;
    } else if (code < 0x800) {
        *out++ = (uint8_t)(0xC0 | code >> 6);
        *out++ = (uint8_t)(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        *out++ = (uint8_t)(0xE0 | code >> 12);
        *out++ = (uint8_t)(0x80 | (code >> 6 & 0x3F));
        *out++ = (uint8_t)(0x80 | (code & 0x3F));
    } else {
        *out++ = (uint8_t)(0xF0 | code >> 18);
        *out++ = (uint8_t)(0x80 | (code >> 12 & 0x3F));
        *out++ = (uint8_t)(0x80 | (code >> 6 & 0x3F));
        *out++ = (uint8_t)(0x80 | (code & 0x3F));
    }
    return out;
}

/* A string, its quote still to come. `out` gets memory that the caller owns; it never needs more than the text has. */
static bool take_string(cursor *c, flumen_text *out) {
    if (!take(c, '"')) {
        return false;
    }
    uint8_t *bytes = malloc((size_t)(c->end - c->at) + 1), *to = bytes;
    while (c->at < c->end && *c->at != '"') {
        if (*c->at != '\\') {
            *to++ = *c->at++;
            continue;
        }
        if (++c->at >= c->end) {
            break;
        }
        uint8_t escape = *c->at++;
        uint32_t code = 0, low = 0;
        switch (escape) {
        case 'b': *to++ = '\b'; break;
        case 'f': *to++ = '\f'; break;
        case 'n': *to++ = '\n'; break;
        case 'r': *to++ = '\r'; break;
        case 't': *to++ = '\t'; break;
        case 'u':
            if (!hex4(c, &code)) {
                free(bytes);
                return false;
            }
            if (code >= 0xD800 && code < 0xDC00 && c->end - c->at >= 6 && c->at[0] == '\\' && c->at[1] == 'u') {
                c->at += 2;
                if (!hex4(c, &low)) {
                    free(bytes);
                    return false;
                }
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
            }
            to = put_utf8(to, code);
            break;
        default: *to++ = escape;
        }
    }
    if (!take(c, '"')) {
        free(bytes);
        return false;
    }
    *out = (flumen_text){bytes, (size_t)(to - bytes)};
    return true;
}

/* Leaves `span` at the value and the cursor behind it. */
static bool take_value(cursor *c, flumen_text *span) {
    skip_space(c);
    const uint8_t *begin = c->at;
    int depth = 0;
    while (c->at < c->end) {
        uint8_t byte = *c->at;
        if (byte == '"') {
            flumen_text ignored;
            if (!take_string(c, &ignored)) {
                return false;
            }
            free((void *)ignored.ptr);
            continue;
        }
        if (depth == 0 && (byte == ',' || byte == '}')) {
            break;
        }
        depth += (byte == '{' || byte == '[') - (byte == '}' || byte == ']');
        c->at++;
    }
    *span = (flumen_text){begin, (size_t)(c->at - begin)};
    while (span->len > 0 && span->ptr[span->len - 1] <= ' ') {
        span->len--;
    }
    return span->len > 0;
}

typedef bool (*visit)(flumen_text key, flumen_text value, void *with, flumen_error *error);

static bool each_key(flumen_text config, visit visitor, void *with, flumen_error *error) {
    cursor c = {config.ptr, config.ptr + config.len};
    if (!take(&c, '{')) {
        return flumen_fail(error, "config: not a table");
    }
    if (take(&c, '}')) {
        return true;
    }
    do {
        flumen_text key, value;
        if (!take_string(&c, &key)) {
            return flumen_fail(error, "config: not valid JSON");
        }
        bool goes_on = take(&c, ':') && take_value(&c, &value);
        if (!goes_on) {
            flumen_fail(error, "config: not valid JSON");
        } else {
            goes_on = visitor(key, value, with, error);
        }
        free((void *)key.ptr);
        if (!goes_on) {
            return false;
        }
    } while (take(&c, ','));
    return take(&c, '}') || flumen_fail(error, "config: not valid JSON");
}

typedef struct {
    const char *key;
    flumen_text value;
} wanted;

static bool is_wanted(flumen_text key, flumen_text value, void *with, flumen_error *error) {
    (void)error;
    wanted *want = with;
    if (flumen_equal(key, flumen_str(want->key))) {
        want->value = value;
    }
    return true;
}

static bool lookup(flumen_text config, const char *key, flumen_text *value, flumen_error *error) {
    wanted want = {key, {NULL, 0}};
    if (!each_key(config, is_wanted, &want, error)) {
        return false;
    }
    *value = want.value;
    return want.value.ptr != NULL;
}

bool flumen_config_text(flumen_text config, const char *key, flumen_text *value, flumen_error *error) {
    flumen_text found;
    if (!lookup(config, key, &found, error)) {
        return false;
    }
    cursor c = {found.ptr, found.ptr + found.len};
    return take_string(&c, value) ||
           flumen_fail(error, "config.%s: found %.*s; write a string", key, (int)found.len, found.ptr);
}

bool flumen_config_integer(flumen_text config, const char *key, int64_t *value, flumen_error *error) {
    flumen_text found;
    if (!lookup(config, key, &found, error)) {
        return false;
    }
    size_t i = found.ptr[0] == '-';
    uint64_t number = 0;
    bool is_number = i < found.len && found.len - i < 19;
    for (; i < found.len && is_number; i++) {
        is_number = found.ptr[i] >= '0' && found.ptr[i] <= '9';
        number = number * 10 + (found.ptr[i] - '0');
    }
    *value = found.ptr[0] == '-' ? -(int64_t)number : (int64_t)number;
    return is_number ||
           flumen_fail(error, "config.%s: found %.*s; write a whole number", key, (int)found.len, found.ptr);
}

bool flumen_config_bool(flumen_text config, const char *key, bool *value, flumen_error *error) {
    flumen_text found;
    if (!lookup(config, key, &found, error)) {
        return false;
    }
    *value = flumen_equal(found, flumen_str("true"));
    return *value || flumen_equal(found, flumen_str("false")) ||
           flumen_fail(error, "config.%s: found %.*s; write true or false", key, (int)found.len, found.ptr);
}

static bool is_known(flumen_text key, flumen_text value, void *with, flumen_error *error) {
    (void)value;
    for (const char *const *known = with; *known != NULL; known++) {
        if (flumen_equal(key, flumen_str(*known))) {
            return true;
        }
    }
    char list[256] = "";
    for (const char *const *known = with; *known != NULL; known++) {
        if (strlen(list) + strlen(*known) + 5 < sizeof list) {
            strcat(list, list[0] == 0 ? "`" : ", `");
            strcat(list, *known);
            strcat(list, "`");
        }
    }
    return flumen_fail(error, "config: unknown key `%.*s`; the keys are %s", (int)key.len, key.ptr, list);
}

bool flumen_config_known(flumen_text config, const char *const *keys, flumen_error *error) {
    return each_key(config, is_known, (void *)keys, error);
}
