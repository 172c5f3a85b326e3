"""mmtrain.interop"""
