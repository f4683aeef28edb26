// Reading one node of a file: attributes and weights by name, each checked as it is asked for.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/names.h"
#include "runtime/error.h"
#include "runtime/nodes.h"

namespace fastdiff {

// Hands out the parts of one raw node, each once, and says in the end what nobody asked for.
class NodeParts {
  public:
    NodeParts(const RawNode& raw, const Graph& graph)
        : raw_(raw),
          graph_(graph),
          attribute_used_(raw.attributes.size()),
          weight_used_(raw.weights.size()) {}

    [[noreturn]] void fail(const std::string& what) const {
        throw EngineError("node " + raw_.op + " at " + raw_.path + ": " + what);
    }

    std::int64_t integer(std::string_view name, std::int64_t low, std::int64_t high) {
        const auto* value = std::get_if<std::int64_t>(&attribute(name));
        if (value == nullptr) fail("attribute " + std::string(name) + " is no integer");
        if (*value < low || *value > high) {
            fail("attribute " + std::string(name) + " is " + std::to_string(*value) + ", wanted " +
                 std::to_string(low) + " to " + std::to_string(high));
        }
        return *value;
    }
    std::size_t size(std::string_view name, std::int64_t low, std::int64_t high) {
        return static_cast<std::size_t>(integer(name, low, high));
    }
    bool flag(std::string_view name) { return integer(name, 0, 1) != 0; }
    double real(std::string_view name) {
        const auto* value = std::get_if<double>(&attribute(name));
        if (value == nullptr) fail("attribute " + std::string(name) + " is no float");
        return *value;
    }
    // NaN would turn every result into NaN, and a double beyond float's range is undefined to convert.
    float real32(std::string_view name) {
        const double value = real(name);
        if (!(std::abs(value) <= std::numeric_limits<float>::max())) {
            fail("attribute " + std::string(name) + " is " + std::to_string(value) +
                 ", wanted a finite number");
        }
        return static_cast<float>(value);
    }
    // As real32, but infinite where there is no bound.
    float bound(std::string_view name) {
        const double value = real(name);
        return std::isinf(value) ? static_cast<float>(value) : real32(name);
    }
    const std::vector<std::int64_t>& integers(std::string_view name) {
        const auto* value = std::get_if<std::vector<std::int64_t>>(&attribute(name));
        if (value == nullptr) fail("attribute " + std::string(name) + " is no tuple");
        return *value;
    }
    Activation activation(bool geglu) {
        const auto* name = std::get_if<std::string>(&attribute("activation"));
        if (name == nullptr) fail("attribute activation is no string");
        const Activation* found = find_named(activation_names, *name);
        if (found != nullptr && (geglu || *found != Activation::geglu)) return *found;
        fail("activation '" + *name + "' is not one of none, silu, gelu, quick_gelu" +
             (geglu ? ", geglu" : ""));
    }

    const Weight* weight(std::string_view role) {
        for (std::size_t i = 0; i < raw_.weights.size(); ++i) {
            if (raw_.weights[i].first != role) continue;
            weight_used_[i] = true;
            return &weight_of(raw_.weights[i].second);
        }
        return nullptr;
    }
    const Weight& require_weight(std::string_view role) {
        const Weight* found = weight(role);
        if (found == nullptr) fail("weight " + std::string(role) + " is missing");
        return *found;
    }
    // A float32 vector, of `length` unless that is 0; null when it is not there.
    const float* vector(std::string_view role, std::size_t& length) {
        const Weight* found = weight(role);
        if (found == nullptr) return nullptr;
        if (found->dtype != DType::float32 || found->shape.rank() != 1 ||
            (length != 0 && found->shape[0] != length)) {
            fail("weight " + found->name + " has shape " + to_string(found->shape) +
                 ", wanted float32 of shape [" + (length == 0 ? "channels" : std::to_string(length)) + "]");
        }
        length = found->shape[0];
        return reinterpret_cast<const float*>(found->data);
    }
    const Weight& packed(const RawNode::Packing& packing, std::size_t bytes) {
        const Weight& found = weight_of(packing.weight);
        if (found.dtype != DType::packed || found.bytes != bytes) {
            fail("packed weight " + found.name + " has " + std::to_string(found.bytes) + " bytes, wanted " +
                 std::to_string(bytes));
        }
        return found;
    }
    WeightType type(const RawNode::Packing& packing) {
        if (packing.type > static_cast<std::uint8_t>(WeightType::fp16)) fail("unknown type of a packing");
        return static_cast<WeightType>(packing.type);
    }
    ConvAlgorithm algorithm(std::uint8_t code) {
        if (code > static_cast<std::uint8_t>(ConvAlgorithm::winograd2_plain)) fail("unknown algorithm");
        return static_cast<ConvAlgorithm>(code);
    }

    void finish() const {
        for (std::size_t i = 0; i < attribute_used_.size(); ++i) {
            if (!attribute_used_[i]) fail("unknown attribute " + raw_.attributes[i].first);
        }
        for (std::size_t i = 0; i < weight_used_.size(); ++i) {
            if (!weight_used_[i]) fail("unknown weight " + raw_.weights[i].first);
        }
    }

  private:
    const Attribute& attribute(std::string_view name) {
        for (std::size_t i = 0; i < raw_.attributes.size(); ++i) {
            if (raw_.attributes[i].first != name) continue;
            attribute_used_[i] = true;
            return raw_.attributes[i].second;
        }
        fail("attribute " + std::string(name) + " is missing");
    }
    const Weight& weight_of(std::int64_t id) const {
        if (id < 0 || id >= static_cast<std::int64_t>(graph_.weights.size())) fail("unknown weight id");
        return graph_.weights[static_cast<std::size_t>(id)];
    }

    const RawNode& raw_;
    const Graph& graph_;
    std::vector<bool> attribute_used_, weight_used_;
};

}  // namespace fastdiff
