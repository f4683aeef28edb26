// What functions, activations and algorithms are called in engine files, in Python and in messages.
#pragma once

#include <string_view>

#include "kernels/activation.h"
#include "kernels/conv2d.h"
#include "kernels/elementwise.h"

namespace fastdiff {

template <class T>
struct Named {
    std::string_view name;
    T value;
};

inline constexpr Named<Activation> activation_names[] = {
    {"none", Activation::none},   {"silu", Activation::silu},
    {"gelu", Activation::gelu},   {"quick_gelu", Activation::quick_gelu},
    {"geglu", Activation::geglu},
};

inline constexpr Named<ConvAlgorithm> algorithm_names[] = {
    {"direct", ConvAlgorithm::direct},
    {"winograd2", ConvAlgorithm::winograd2},
    {"winograd4", ConvAlgorithm::winograd4},
    {"winograd2_plain", ConvAlgorithm::winograd2_plain},
};

inline constexpr Named<Elementwise> elementwise_names[] = {
    {"copy", Elementwise::copy},
    {"silu", Elementwise::silu},
    {"gelu", Elementwise::gelu},
    {"quick_gelu", Elementwise::quick_gelu},
    {"gelu_tanh", Elementwise::gelu_tanh},
    {"relu", Elementwise::relu},
    {"sigmoid", Elementwise::sigmoid},
    {"tanh", Elementwise::tanh},
    {"exp", Elementwise::exp},
    {"sin", Elementwise::sin},
    {"cos", Elementwise::cos},
    {"sqrt", Elementwise::sqrt},
    {"negate", Elementwise::negate},
    {"clamp", Elementwise::clamp},
    {"add_scalar", Elementwise::add_scalar},
    {"mul_scalar", Elementwise::mul_scalar},
    {"add", Elementwise::add},
    {"subtract", Elementwise::subtract},
    {"multiply", Elementwise::multiply},
    {"divide", Elementwise::divide},
};

// Null for a name that is not there.
template <class T, std::size_t N>
const T* find_named(const Named<T> (&table)[N], std::string_view name) {
    for (const Named<T>& entry : table) {
        if (entry.name == name) return &entry.value;
    }
    return nullptr;
}

// Of a value that is there.
template <class T, std::size_t N>
std::string_view name_of(const Named<T> (&table)[N], T value) {
    for (const Named<T>& entry : table) {
        if (entry.value == value) return entry.name;
    }
    return {};
}

}  // namespace fastdiff
