// What fake_nvrtc.cpp makes instead of a cubin: this head, then a library.
#pragma once
#include <cstdint>

#define FAKE_MAGIC "fakecub"

struct FakeImage {
    char magic[8];
    uint64_t bytes;  // of the library
};
