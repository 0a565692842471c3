// A caller's function object behind a pointer: a loop that takes one is compiled once for each level, not
// once for each cell, element type and place that calls it. For what is called a tile or an item at a time.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

template <class Signature>
class FunctionRef;

// It keeps no copy: the object has to outlive it, as an argument does.
template <class Result, class... Args>
class FunctionRef<Result(Args...)> {
 public:
  template <class F>
  FunctionRef(const F& f)
      : object_(&f), call_([](const void* object, Args... args) -> Result {
          return (*static_cast<const F*>(object))(args...);
        }) {}

  Result operator()(Args... args) const { return call_(object_, args...); }

 private:
  const void* object_;
  Result (*call_)(const void*, Args...);
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn
