// A libnvrtc for tests: "compiles" a CUDA source with the system's C++ compiler and cuda_cpu.h into a library for this CPU,
// which fake_driver.cpp loads as if it were machine code of a GPU. What a failing compiler says becomes the log.
//
// Compiled with -DCUDA_CPU_FOLDER="the folder of cuda_cpu.h".
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "fake_image.h"

namespace {

struct Program {
    std::string source, name;
    std::vector<std::pair<std::string, std::string>> headers;  // by name
    std::string log, image;
};

enum { SUCCESS = 0, INVALID_INPUT = 3, INVALID_OPTION = 5, COMPILATION = 6 };

std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void write(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

// A line for each kernel, found by its launch bounds.
std::string exports(const std::string& source) {
    const std::string bounds = "__launch_bounds__(BLOCK, ";
    std::string lines;
    for (size_t at = source.find(bounds); at != std::string::npos; at = source.find(bounds, at)) {
        at = source.find_first_not_of(" \n", source.find(')', at) + 1);
        lines += "CUDA_CPU_EXPORT(" + source.substr(at, source.find('(', at) - at) + ")\n";
    }
    return lines;
}

}  // namespace

extern "C" {

int nvrtcVersion(int* major, int* minor) {
    *major = 13, *minor = 0;
    return SUCCESS;
}

int nvrtcCreateProgram(Program** program, const char* source, const char* name, int headers, const char* const* texts,
                       const char* const* names) {
    if (headers < 1) return INVALID_INPUT;
    *program = new Program{source, name, {}, "", ""};
    for (int i = 0; i < headers; i++) (*program)->headers.emplace_back(names[i], texts[i]);
    return SUCCESS;
}

int nvrtcCompileProgram(Program* p, int count, const char* const* options) {
    std::string definitions;
    bool architecture = false;
    for (int i = 0; i < count; i++) {
        const std::string option = options[i];
        if (option.rfind("-D", 0) == 0) definitions += " '" + option + "'";
        else if (option.rfind("--gpu-architecture=sm_", 0) == 0) architecture = true;
        else if (option != "--std=c++17") return p->log = "unknown option " + option, INVALID_OPTION;
    }
    if (!architecture) return p->log = "no architecture", INVALID_OPTION;
    char folder_name[] = "/tmp/supernet_fake_nvrtc_XXXXXX";
    if (!mkdtemp(folder_name)) return p->log = "no temporary folder", COMPILATION;
    const std::string folder = folder_name;
    for (const auto& [name, text] : p->headers) write(folder + "/" + name, text);
    write(folder + "/main.cpp",
          "#include \"cuda_cpu.h\"\n#line 1 \"" + p->name + "\"\n" + p->source + "\n" + exports(p->source));
    const char* compiler = getenv("CXX");
    const std::string command = std::string(compiler ? compiler : "g++") +
                                " -O1 -march=native -std=c++17 -shared -fPIC -w" + definitions + " -I " CUDA_CPU_FOLDER " -I " +
                                folder + " " + folder + "/main.cpp -o " + folder + "/kernels.so 2> " + folder + "/log";
    const bool compiled = system(command.c_str()) == 0;
    p->log = read(folder + "/log");
    if (compiled) {
        const std::string library = read(folder + "/kernels.so");
        FakeImage head = {};
        memcpy(head.magic, FAKE_MAGIC, sizeof head.magic);
        head.bytes = library.size();
        p->image = std::string(reinterpret_cast<const char*>(&head), sizeof head) + library;
    }
    for (const char* file : {"/main.cpp", "/kernels.so", "/log"}) remove((folder + file).c_str());
    for (const auto& [name, text] : p->headers) remove((folder + "/" + name).c_str());
    remove(folder.c_str());
    return compiled ? SUCCESS : COMPILATION;
}

int nvrtcGetProgramLogSize(Program* p, size_t* bytes) {
    *bytes = p->log.size() + 1;
    return SUCCESS;
}

int nvrtcGetProgramLog(Program* p, char* log) {
    memcpy(log, p->log.c_str(), p->log.size() + 1);
    return SUCCESS;
}

int nvrtcGetCUBINSize(Program* p, size_t* bytes) {
    *bytes = p->image.size();
    return SUCCESS;
}

int nvrtcGetCUBIN(Program* p, char* image) {
    memcpy(image, p->image.data(), p->image.size());
    return SUCCESS;
}

int nvrtcDestroyProgram(Program** p) {
    delete *p;
    *p = nullptr;
    return SUCCESS;
}
}
