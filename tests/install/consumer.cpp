// A user of the installed library: saves two tensors, loads them, and finds the same bytes.
#include <array>
#include <cstdio>
#include <cstring>

#include <safering/save_load.hpp>

int main(int argc, char** argv) {
    if (argc != 2)
        return 2;
    const std::array<float, 6> weight{1, 2, 3, 4, 5, 6};
    const std::array<std::int64_t, 1> steps{42};
    const std::array<safering::NamedTensor, 2> tensors{{
        {"weight",
         {.data = reinterpret_cast<const std::byte*>(weight.data()),
          .dtype = safering::Dtype::f32,
          .shape = {2, 3}}},
        {"steps",
         {.data = reinterpret_cast<const std::byte*>(steps.data()), .dtype = safering::Dtype::i64}},
    }};
    try {
        safering::save_file(argv[1], tensors);
        const safering::LoadedFile loaded = safering::load_file(argv[1]);
        const auto& loaded_weight = loaded.tensors.at("weight");
        const bool equal =
            loaded.tensors.size() == 2 && loaded_weight.shape == safering::Shape{2, 3} &&
            std::memcmp(loaded_weight.data, weight.data(), sizeof weight) == 0 &&
            std::memcmp(loaded.tensors.at("steps").data, steps.data(), sizeof steps) == 0;
        if (!equal)
            std::fprintf(stderr, "what was loaded is not what was saved\n");
        return equal ? 0 : 1;
    } catch (const safering::Exception& exception) {
        std::fprintf(stderr, "%s\n", exception.error().message().c_str());
        return 1;
    }
}
